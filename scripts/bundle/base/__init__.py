"""What everything else stands on: errors and exit codes, the console, running programs, files written whole, near misses."""
