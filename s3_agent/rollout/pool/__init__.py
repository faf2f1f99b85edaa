"""The pool: claims rollouts from the gateway, has workers play them, retries, and reports."""
