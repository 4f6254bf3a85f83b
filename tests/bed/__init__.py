"""The harness: one stand-in homeserver, one launcher of nginx, one client, one form of report.

Used by e2e/, campaign/, bench/ and companion/tests/. Test::Nginx has its own launcher and client, and starts the same
stand-in. docs/architecture.md says what each file is for.
"""
