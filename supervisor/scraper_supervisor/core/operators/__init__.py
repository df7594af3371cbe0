"""What operators ask for, and what of it takes longer than a step."""
