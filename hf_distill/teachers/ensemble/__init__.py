"""Several teachers as one."""
