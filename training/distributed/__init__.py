"""Ranks: launch, rendezvous, collectives, the watchdog, and stopping together."""
