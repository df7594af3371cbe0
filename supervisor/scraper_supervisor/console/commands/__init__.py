"""The commands, a module each for what is used together."""
