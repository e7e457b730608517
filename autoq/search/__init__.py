"""Proposing candidates, evaluating them, and keeping what came of it."""
