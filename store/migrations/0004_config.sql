-- Versions of VMs' configurations, from the first change on; version 1 is written
-- with the second. The manifest is what the VM runs with it.
CREATE TABLE vm_configs (
	vm           TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	version      INTEGER NOT NULL,
	at           INTEGER NOT NULL,
	by           TEXT NOT NULL,
	taken_from   INTEGER NOT NULL, -- the version that it was made of; 0 for the one before
	changed_json TEXT NOT NULL,    -- array of names
	config_json  TEXT NOT NULL,
	manifest     TEXT NOT NULL REFERENCES manifests (digest),
	PRIMARY KEY (vm, version)
) WITHOUT ROWID;
CREATE INDEX vm_configs_manifest ON vm_configs (manifest);

-- When VMs are to be deleted.
CREATE TABLE vm_expiries (
	vm TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
	at INTEGER NOT NULL
) WITHOUT ROWID;

ALTER TABLE events ADD COLUMN old_name TEXT NOT NULL DEFAULT '';
