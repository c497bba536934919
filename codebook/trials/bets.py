"""Betting on differences: e-values of a mixture of bets, valid at every look.

Under the hypothesis that a payoff x in [-1, 1 + margin] has the mean 0 or less, each product over (1 + bet x) is a
supermartingale, and so is the mean over BETS: it exceeds 1 / alpha with a chance of at most alpha, at any time (Ville;
betting as in Waudby-Smith and Ramdas, JRSS B 86, 2024).

Knows numbers. Knows nothing of images or versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log1p

BETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # shares of the wealth staked on each payoff
LIMIT = 100.0  # e-value of a decision: wrong with a chance of at most 1 in 100
HIGHEST_LOG = 690.0  # of an e-value, so that it stays a finite number


def e_value(payoffs: Sequence[tuple[float, int]]) -> float:
    """Return the e-value of payoffs, given as (payoff, how often it came); their order does not matter."""
    logs = [sum(count * log1p(bet * payoff) for payoff, count in payoffs) for bet in BETS]
    highest = max(logs)
    return exp(min(highest, HIGHEST_LOG)) * sum(exp(log - highest) for log in logs) / len(logs)
