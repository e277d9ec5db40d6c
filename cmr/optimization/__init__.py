"""What steers a running memory, through public settings and methods only."""
