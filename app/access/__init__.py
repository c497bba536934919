"""Access: whose a key is, what it may do and how much, and links that need none."""
