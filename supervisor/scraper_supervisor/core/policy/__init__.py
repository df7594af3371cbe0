"""Rules as machines that know no room: restarts, limits, the abort window, service levels."""
