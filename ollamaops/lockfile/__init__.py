"""What the lock file holds, and what it means."""
