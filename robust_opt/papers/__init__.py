"""One thin script a paper: its tables and figures as calls of the library."""
