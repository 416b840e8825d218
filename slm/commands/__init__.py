"""The verbs. Every function here raises `UserError` where the user's input must change."""
