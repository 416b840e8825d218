"""From the command line and config files to the options of a verb."""
