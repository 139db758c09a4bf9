// Package wire is the south contract: what the host and kestrel, the agent in
// the guest, say to each other. It holds the boot configuration that travels on
// a small disk, the messages of the agent's HTTP API, the kernel parameters,
// and the framing of the virtio-serial link that carries the API where there is
// no vsock. It imports the standard library only.
//
// The host and the guest run the same binary, so both ends always agree on a
// Protocol; a guest that was started by an older daemon is the exception. Both
// ends say their Protocol on first contact (Hello, BootConfig) and refuse one
// outside [MinProtocol, Protocol].
package wire

// Protocol is the version of this contract. Adding a field or a route keeps
// it; a change that an older peer would misread raises it.
const (
	Protocol    = 1
	MinProtocol = 1
)

// Kernel command line parameters. The command line is short and world-readable
// in the guest; everything else travels in the boot configuration. kestrel
// refuses to act as PID 1 unless at least ParamVM is there.
const (
	// ParamVM is the VM's id, for the console's first line: volant.vm=ID.
	ParamVM = "volant.vm"
	// ParamLog sets kestrel's own log level on the console: volant.log=debug.
	ParamLog = "volant.log"
	// ParamAgent is the disk that the agent is on, for the shim that is the
	// guest's first process (guest/shim): volant.agent=SERIAL, or =/dev/NAME for a
	// disk that has none. Without it the agent is in the initramfs.
	ParamAgent = "volant.agent"
	// ParamPlan is where on the disk ConfigSerial the plan of the boot is, for the
	// shim (guest/plan): volant.plan=OFFSET,SIZE in bytes. Without it there is none.
	ParamPlan = "volant.plan"
	// ParamPrefix is what every Volant parameter begins with.
	ParamPrefix = "volant."
)

// ConfigSerial is the virtio serial of the disk that holds the BootConfig.
const ConfigSerial = "volant-config"

// The disk of the agent: AgentSerial is its virtio serial, AgentDevice what it is
// as the first persistent memory of a machine, and AgentProgram the program in the
// root directory of its erofs.
const (
	AgentSerial  = "volant-agent"
	AgentDevice  = "/dev/pmem0"
	AgentProgram = "kestrel"
)

// EnvShim is the variable in which the shim tells kestrel when it began and when
// it ended: two numbers of nanoseconds of CLOCK_BOOTTIME, a comma between them.
// Where it has followed a plan (guest/plan) five more come after them: when that
// began and ended, the pid of the workload, and the file descriptors that its
// output and its errors are read from.
const EnvShim = "VOLANT_SHIM"

// AgentPort is the AF_VSOCK port, and SerialPort the virtio-serial port name,
// on which kestrel serves the agent API. ReadyPort is the host's AF_VSOCK port that
// kestrel connects to, and says nothing on, once it listens on its own: a host that
// listens there need not try again and again. To be there is all that it tells.
const (
	AgentPort  = 1024
	ReadyPort  = 1025
	SerialPort = "volant.agent.0"
)

// ModulesDir is where the initramfs holds the kernel modules that kestrel
// loads at boot, and ModulesOrder the file in it that lists them, one file
// name a line, in load order. Kernels with everything built in have neither.
const (
	ModulesDir   = "/lib/modules/volant"
	ModulesOrder = "order"
)
