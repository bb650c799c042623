"""Prompts computed by some replicas, answers given by others: when that pays, and how a request goes through both."""
