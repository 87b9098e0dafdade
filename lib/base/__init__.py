"""The ground floor: what a valid argument is, several processes as one, shapes, progress.  It knows nobody."""
