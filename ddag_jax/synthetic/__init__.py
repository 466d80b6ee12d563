"""Rendered people, and rehearsals of the datasets' folders."""
