"""What one types after ``ovenbird``: a file for each command, and what they share."""
