"""End-to-end test: a real Synapse with workers behind nginx with the module. Entry: scripts/e2e, scripts/synapse."""
