-- Times are nanoseconds since 1970 UTC; 0 is "never". Digests are "sha256:" and
-- 64 hex digits. Columns named *_json hold JSON objects.

-- A manifest is kept once, however many VMs were created from it.
CREATE TABLE manifests (
	digest     TEXT PRIMARY KEY,
	body       TEXT NOT NULL,
	blobs_json TEXT NOT NULL -- array of the digests that it names
) WITHOUT ROWID;

CREATE TABLE plugins (
	name         TEXT PRIMARY KEY,
	version      TEXT NOT NULL,
	runtime      TEXT NOT NULL,
	enabled      INTEGER NOT NULL,
	manifest     TEXT NOT NULL REFERENCES manifests (digest),
	installed_at INTEGER NOT NULL,
	updated_at   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX plugins_manifest ON plugins (manifest);

CREATE TABLE vms (
	id             TEXT PRIMARY KEY,
	name           TEXT NOT NULL UNIQUE,
	plugin         TEXT NOT NULL REFERENCES plugins (name),
	plugin_version TEXT NOT NULL,
	runtime        TEXT NOT NULL,
	manifest       TEXT NOT NULL REFERENCES manifests (digest),
	status         TEXT NOT NULL,
	desired        TEXT NOT NULL,
	reason         TEXT NOT NULL,
	agent_up       INTEGER NOT NULL,
	healthy        INTEGER NOT NULL,
	vsock          INTEGER NOT NULL, -- no NIC
	mac            TEXT UNIQUE,      -- NULL without a NIC
	cid            INTEGER NOT NULL UNIQUE,
	cpu_cores      INTEGER NOT NULL,
	memory_mib     INTEGER NOT NULL,
	cmdline        TEXT NOT NULL,
	want_kernel    TEXT NOT NULL,
	kernel         TEXT NOT NULL,
	hypervisor     TEXT NOT NULL,
	accel          TEXT NOT NULL,
	pid            INTEGER NOT NULL,
	incarnation    INTEGER NOT NULL,
	replace_to     INTEGER NOT NULL,
	restarts       INTEGER NOT NULL,
	boot_id        TEXT NOT NULL,
	initramfs      TEXT NOT NULL,
	created_at     INTEGER NOT NULL,
	updated_at     INTEGER NOT NULL,
	accepted_at    INTEGER NOT NULL,
	started_at     INTEGER NOT NULL,
	details_json   TEXT NOT NULL -- labels, env, stop, exit, record
) WITHOUT ROWID;
CREATE INDEX vms_plugin ON vms (plugin);
CREATE INDEX vms_manifest ON vms (manifest);
CREATE INDEX vms_status ON vms (status, runtime);
-- The VMs that need a worker: few of many.
CREATE INDEX vms_active ON vms (id) WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed'));

-- An address belongs to a VM for its life.
CREATE TABLE leases (
	address TEXT PRIMARY KEY,
	vm      TEXT NOT NULL UNIQUE REFERENCES vms (id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE kernels (
	name       TEXT PRIMARY KEY,
	version    TEXT NOT NULL,
	digest     TEXT NOT NULL,
	size       INTEGER NOT NULL,
	modules    TEXT NOT NULL,
	is_default INTEGER NOT NULL,
	created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX kernels_default ON kernels (is_default) WHERE is_default = 1;

-- The journal. seq is the rowid: the highest so far plus one, so it has no
-- gaps. Only the oldest entries are ever removed, and never the newest.
CREATE TABLE events (
	seq     INTEGER PRIMARY KEY,
	time    INTEGER NOT NULL,
	type    TEXT NOT NULL,
	name    TEXT NOT NULL,
	vm      TEXT NOT NULL,
	status  TEXT NOT NULL,
	address TEXT NOT NULL,
	pid     INTEGER NOT NULL,
	message TEXT NOT NULL
);
CREATE INDEX events_name ON events (name, seq);

-- Every blob that something stored still needs.
CREATE VIEW blob_refs AS
	SELECT j.value AS digest FROM manifests, json_each(manifests.blobs_json) AS j
	UNION SELECT digest FROM kernels
	UNION SELECT modules FROM kernels WHERE modules <> '';
