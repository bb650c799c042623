"""A fleet that is simulated event by event over the code that scales the real one."""
