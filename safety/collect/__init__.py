"""Data of a round: harmful and safe pairs, token attribution, data for router and tuning."""
