"""What runs the notebooks: `python -m pipeline` explains itself."""
