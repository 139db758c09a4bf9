-- Requests with an idempotency key that took effect, for a while. result_json is
-- written in the transaction of the effect, and null where only an answer is
-- kept; status and what follows, the HTTP response, when it is known: 0 until
-- then.
CREATE TABLE answers (
	seq         INTEGER PRIMARY KEY,
	key         TEXT NOT NULL UNIQUE,
	digest      TEXT NOT NULL, -- of the request
	at          INTEGER NOT NULL,
	kind        TEXT NOT NULL,
	result_json TEXT NOT NULL,
	status      INTEGER NOT NULL,
	media       TEXT NOT NULL,
	body        BLOB NOT NULL
);
