"""The converter: a checkpoint goes in, verified folders come out.  ``ovenbird`` never imports it."""
