-- The labels that what an event is about had at the time, as JSON. Few sets are
-- those of many events.
CREATE TABLE label_sets (
	id          INTEGER PRIMARY KEY,
	labels_json TEXT NOT NULL UNIQUE
);
ALTER TABLE events ADD COLUMN labels INTEGER NOT NULL DEFAULT 0; -- label_sets.id, 0 for none
