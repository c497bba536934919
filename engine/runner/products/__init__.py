"""Ways of multiplying on a CPU that come to the same bits, and the choice among them."""
