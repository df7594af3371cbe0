"""Tables of states and triggers without holes, and the life that follows one."""
