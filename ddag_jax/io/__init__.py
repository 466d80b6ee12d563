"""Reading and writing files, and progress on the terminal."""
