"""Foundations of every package: settings, errors, atomic files, SQLite, JSON records, text. No torch."""
