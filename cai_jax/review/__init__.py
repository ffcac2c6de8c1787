"""A run to look at and to judge: one self-contained page, and a local web app."""
