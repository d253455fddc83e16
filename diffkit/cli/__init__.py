"""The command line: click commands. What a command needs is imported when it runs, torch most of all."""
