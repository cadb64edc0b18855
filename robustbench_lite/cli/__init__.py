"""The command line; its modules import what is heavy only when a command runs."""
