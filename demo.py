"""Make a picture: python demo.py --prompt "a red house in the snow"."""

from ovenbird.cli import demo

demo()
