"""Conductor, agent, ledger, proof, heal: faults on time, proven to bite, proven to be gone."""
