"""Processes: started, watched, measured, and ended as whole trees. No policy."""
