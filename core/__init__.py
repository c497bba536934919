"""Foundations every package stands on: settings, errors, atomic files, SQLite, JSON records, text. No torch."""
