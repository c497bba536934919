"""The command `safecb`: serve (the supervisor), worker, improve, evaluate, demo, and a client of the API."""
