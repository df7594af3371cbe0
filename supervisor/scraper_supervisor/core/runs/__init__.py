"""Groups and their runs, from opening to the end of everything."""
