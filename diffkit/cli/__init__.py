"""The command line: click commands. Modules that a command needs, such as torch, are imported when it runs."""
