"""Which profile a deployment uses when nobody named one."""
