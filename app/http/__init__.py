"""HTTP mechanics shared by all routes: keys, problem documents, negotiation, disconnects, limits."""
