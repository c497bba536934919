"""The gates a candidate codebook must pass: each a small module with its threshold stated, each giving a GateResult."""
