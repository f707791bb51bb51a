"""What a running deployment does and did, for people."""
