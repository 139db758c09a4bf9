-- Images: the trees of OCI images as disks and archives, which are blobs.
CREATE TABLE images (
	id             TEXT PRIMARY KEY, -- digest of the image's manifest
	platform       TEXT NOT NULL,
	layers         INTEGER NOT NULL,
	disk           TEXT NOT NULL, -- digest; '' while there is none
	disk_size      INTEGER NOT NULL,
	initramfs      TEXT NOT NULL, -- digest; '' while there is none
	initramfs_size INTEGER NOT NULL,
	config_json    TEXT NOT NULL,
	created_at     INTEGER NOT NULL,
	pulled_at      INTEGER NOT NULL,
	last_used      INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE image_refs (
	reference TEXT PRIMARY KEY,
	image     TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX image_refs_image ON image_refs (image);

-- A VM is made from a plugin or from an image. SQLite cannot drop a NOT NULL,
-- so the table is made anew; and since dropping the old one would delete its
-- rows, and with them the leases, the leases move first.
CREATE TABLE vms_new (
	id             TEXT PRIMARY KEY,
	name           TEXT NOT NULL UNIQUE,
	plugin         TEXT REFERENCES plugins (name),
	plugin_version TEXT NOT NULL,
	image          TEXT NOT NULL, -- the reference that it was made from
	image_id       TEXT REFERENCES images (id),
	runtime        TEXT NOT NULL,
	manifest       TEXT NOT NULL REFERENCES manifests (digest),
	status         TEXT NOT NULL,
	desired        TEXT NOT NULL,
	reason         TEXT NOT NULL,
	agent_up       INTEGER NOT NULL,
	healthy        INTEGER NOT NULL,
	auto_remove    INTEGER NOT NULL,
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
	details_json   TEXT NOT NULL, -- labels, env, ports, tty, stdin, stop, exit, record
	CHECK ((plugin IS NULL) <> (image_id IS NULL))
) WITHOUT ROWID;
INSERT INTO vms_new
	SELECT id, name, plugin, plugin_version, '', NULL, runtime, manifest, status, desired, reason, agent_up, healthy, 0, vsock, mac, cid,
		cpu_cores, memory_mib, cmdline, want_kernel, kernel, hypervisor, accel, pid, incarnation, replace_to, restarts, boot_id, initramfs,
		created_at, updated_at, accepted_at, started_at, details_json
	FROM vms;

CREATE TABLE leases_new (
	address TEXT PRIMARY KEY,
	vm      TEXT NOT NULL UNIQUE REFERENCES vms_new (id) ON DELETE CASCADE
) WITHOUT ROWID;
INSERT INTO leases_new SELECT address, vm FROM leases;
DROP TABLE leases;
DROP TABLE vms;
-- Renaming takes the references along.
ALTER TABLE vms_new RENAME TO vms;
ALTER TABLE leases_new RENAME TO leases;

CREATE INDEX vms_plugin ON vms (plugin);
CREATE INDEX vms_image ON vms (image_id);
CREATE INDEX vms_manifest ON vms (manifest);
CREATE INDEX vms_status ON vms (status, runtime);
-- The VMs that need a worker: few of many.
CREATE INDEX vms_active ON vms (id) WHERE NOT (desired = 'stopped' AND status IN ('stopped', 'crashed', 'failed'));

-- A port of the host belongs to a VM for its life. That two addresses of one
-- port do not overlap is seen to by whoever chooses them.
CREATE TABLE vm_ports (
	protocol  TEXT NOT NULL,
	host_port INTEGER NOT NULL,
	host_ip   TEXT NOT NULL, -- '' for all
	vm        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	PRIMARY KEY (protocol, host_port, host_ip)
) WITHOUT ROWID;
CREATE INDEX vm_ports_vm ON vm_ports (vm);

-- Volumes: disks that outlive VMs. state is "new" until the disk was made,
-- "ready", and "removing" once it is to go.
CREATE TABLE volumes (
	name        TEXT PRIMARY KEY,
	size_mib    INTEGER NOT NULL,
	state       TEXT NOT NULL,
	labels_json TEXT NOT NULL,
	created_at  INTEGER NOT NULL
) WITHOUT ROWID;

-- What VMs mount. A volume need not exist before one that mounts it starts.
CREATE TABLE vm_volumes (
	vm        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
	volume    TEXT NOT NULL,
	read_only INTEGER NOT NULL,
	held      INTEGER NOT NULL, -- a machine of the VM has the disk, or may have
	PRIMARY KEY (vm, volume)
) WITHOUT ROWID;
CREATE INDEX vm_volumes_volume ON vm_volumes (volume, held);

DROP VIEW blob_refs;
CREATE VIEW blob_refs AS
	SELECT j.value AS digest FROM manifests, json_each(manifests.blobs_json) AS j
	UNION SELECT digest FROM kernels
	UNION SELECT modules FROM kernels WHERE modules <> ''
	UNION SELECT disk FROM images WHERE disk <> ''
	UNION SELECT initramfs FROM images WHERE initramfs <> '';
