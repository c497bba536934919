"""HTTP mechanics shared by all routes: problem documents, negotiation, disconnects, limits."""
