"""Floor 3: HTTP. Wire types, routes, keys, limits, logs; no tensor comes here."""
