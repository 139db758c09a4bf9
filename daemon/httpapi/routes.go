package httpapi

import (
	"net/http"

	"github.com/volantvm/volant/client/api"
)

// route is one row of the table. The zero value of a type stands for the type.
type route struct {
	method  string // empty for any
	path    string // below api.Prefix unless root is set; in the form of http.ServeMux
	root    bool
	id      string // OpenAPI operationId
	summary string
	query   []param
	body    any // what the request carries; nil for nothing
	bodyOpt bool
	upload  string // media type of a request that carries bytes, not JSON
	status  int    // of success
	reply   any    // what a success carries; nil for nothing
	media   string // of the reply, when it is not JSON
	total   bool   // the reply carries api.HeaderTotalCount
	handle  func(*Server, http.ResponseWriter, *http.Request) error
}

// pattern is r in the form of http.ServeMux.
func (r route) pattern() string {
	if r.method == "" {
		return r.fullPath()
	}
	return r.method + " " + r.fullPath()
}

func (r route) fullPath() string {
	if r.root {
		return r.path
	}
	return api.Prefix + r.path
}

// status is the body of GET /healthz and GET /system/status.
type status struct {
	Status string `json:"status"` // "ok"
}

// pluginList is the body of GET /plugins.
type pluginList struct {
	Plugins []api.Plugin `json:"plugins"`
}

// Media types.
const (
	mediaJSON   = "application/json"
	mediaNDJSON = "application/x-ndjson"
	mediaSSE    = "text/event-stream"
	mediaBytes  = "application/octet-stream"
	mediaTar    = "application/x-tar"
)

// routes returns the table of all routes.
func routes() []route {
	const get, post, put, del, patch = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch
	return []route{
		{method: get, path: "/healthz", root: true, id: "health", summary: "Say that the daemon answers", status: 200, reply: status{}, handle: (*Server).health},
		{method: get, path: "/openapi", root: true, id: "openapi", summary: "Describe this API as an OpenAPI document", status: 200, reply: map[string]any{}, handle: (*Server).openapi},

		{method: get, path: "/system/status", id: "systemStatus", summary: "Say that the daemon answers", status: 200, reply: status{}, handle: (*Server).health},
		{method: get, path: "/system/info", id: "systemInfo", summary: "Say what the daemon is and runs on", status: 200, reply: api.SystemInfo{}, handle: (*Server).systemInfo},
		{method: get, path: "/system/doctor", id: "doctor", summary: "Look what can run VMs here", status: 200, reply: api.Doctor{}, handle: (*Server).doctor},
		{method: get, path: "/system/summary", id: "systemSummary", summary: "Count what there is", status: 200, reply: api.SystemSummary{}, handle: (*Server).systemSummary},

		{method: get, path: "/vms", id: "listVMs", summary: "List VMs", query: listParams(), status: 200, reply: []api.VM{}, total: true, handle: (*Server).listVMs},
		{method: post, path: "/vms", id: "createVM", summary: "Create a VM from a plugin or an image, and start it", query: waitParams(), body: api.VMCreate{}, status: 201, reply: api.VM{}, handle: (*Server).createVM},
		{method: get, path: "/vms/{name}", id: "getVM", summary: "Get one VM, after it got where wait says", query: waitParams(), status: 200, reply: api.VM{}, handle: (*Server).getVM},
		{method: del, path: "/vms/{name}", id: "deleteVM", summary: "Stop and delete a VM with its disks and address", query: append(waitParams(), stopParams()...), status: 204, handle: (*Server).deleteVM},
		{method: post, path: "/vms/{name}/start", id: "startVM", summary: "Start a VM", query: waitParams(), status: 200, reply: api.VM{}, handle: (*Server).startVM},
		{method: post, path: "/vms/{name}/stop", id: "stopVM", summary: "Stop a VM", query: waitParams(), body: api.VMStop{}, bodyOpt: true, status: 200, reply: api.VM{}, handle: (*Server).stopVM},
		{method: post, path: "/vms/{name}/restart", id: "restartVM", summary: "Stop a VM and start it again", query: waitParams(), body: api.VMStop{}, bodyOpt: true, status: 200, reply: api.VM{}, handle: (*Server).restartVM},
		{method: post, path: "/vms/{name}/pause", id: "pauseVM", summary: "Let a VM stand still: its processors stop, its memory stays", query: waitParams(), status: 200, reply: api.VM{}, handle: (*Server).pauseVM},
		{method: post, path: "/vms/{name}/resume", id: "resumeVM", summary: "Let a paused VM go on, with its clock set", query: waitParams(), status: 200, reply: api.VM{}, handle: (*Server).resumeVM},
		{method: post, path: "/vms/{name}/scale", id: "scaleVM", summary: "Change how many vCPUs and how much memory a VM has, while it runs where that is possible", query: waitParams(), body: api.VMScale{}, status: 200, reply: api.VM{}, handle: (*Server).scaleVM},
		{method: get, path: "/vms/{name}/stats", id: "vmStats", summary: "Measure what a VM uses, a JSON object a sample and line", query: statsParams(), status: 200, reply: api.VMStats{}, media: mediaNDJSON, handle: (*Server).vmStats},
		{method: get, path: "/stats", id: "stats", summary: "Measure what VMs use, those named or all that have a machine; a JSON object a sample and line",
			query: append(statsParams(), param{"vm", "string", "names or ids of VMs, separated by commas or repeated"}), status: 200, reply: api.StatsSample{}, media: mediaNDJSON, handle: (*Server).stats},
		{method: post, path: "/vms/{name}/rename", id: "renameVM", summary: "Give a VM another name; its host name follows at its next start", body: api.VMRename{}, status: 200, reply: api.VM{}, handle: (*Server).renameVM},
		{method: get, path: "/vms/{name}/config", id: "getVMConfig", summary: "Get the configuration of a VM, the newest version or the one that is asked for", query: getConfigParams(), status: 200, reply: api.VMConfigVersion{}, handle: (*Server).getVMConfig},
		{method: patch, path: "/vms/{name}/config", id: "setVMConfig", summary: "Make a further version of a VM's configuration by a JSON merge patch (RFC 7396); it is in effect with the next start, labels, auto_remove and ttl_seconds at once", query: setConfigParams(), body: map[string]any{}, bodyOpt: true, status: 200, reply: api.VMConfigVersion{}, handle: (*Server).setVMConfig},
		{method: get, path: "/vms/{name}/config/history", id: "getVMConfigHistory", summary: "List the versions of a VM's configuration that are kept, the newest first", query: historyParams(), status: 200, reply: []api.VMConfigVersion{}, handle: (*Server).getVMConfigHistory},
		{method: get, path: "/vms/{name}/timeline", id: "vmTimeline", summary: "Get the steps of the VM's last start", status: 200, reply: api.Timeline{}, handle: (*Server).vmTimeline},
		{method: get, path: "/vms/{name}/logs", id: "vmLogs", summary: "Stream the workload's output or the console, a JSON object a line", query: logParams(), status: 200, reply: api.LogEntry{}, media: mediaNDJSON, handle: (*Server).vmLogs},
		{method: post, path: "/vms/{name}/exec", id: "execVM", summary: "Run a command in a VM: switches to the protocol of its streams", body: api.Exec{}, status: 101, handle: (*Server).execVM},
		{method: post, path: "/vms/{name}/attach", id: "attachVM", summary: "Connect with the workload: switches to the protocol of its streams", status: 101, handle: (*Server).attachVM},
		{method: get, path: "/vms/{name}/stat", id: "statFile", summary: "Describe a file in a VM", query: fileParams(), status: 200, reply: api.File{}, handle: (*Server).statFile},
		{method: get, path: "/vms/{name}/archive", id: "getArchive", summary: "Get a file in a VM and all below it as a tar stream; what goes wrong after its beginning is in the trailer " + api.TrailerError, query: fileParams(), status: 200, media: mediaTar, handle: (*Server).getArchive},
		{method: put, path: "/vms/{name}/archive", id: "putArchive", summary: "Unpack a tar stream into a directory of a VM", query: unpackParams(), upload: mediaTar, status: 204, handle: (*Server).putArchive},
		{path: "/vms/{name}/agent/{path...}", id: "vmAgent", summary: "Pass any request on to the workload at its base URL", status: 200, media: "*/*", handle: (*Server).vmAgent},

		{method: get, path: "/plugins", id: "listPlugins", summary: "List plugins", query: []param{selectorParam()}, status: 200, reply: pluginList{}, handle: (*Server).listPlugins},
		{method: post, path: "/plugins", id: "installPlugin", summary: "Install a manifest whose artifacts were uploaded as blobs", body: api.Manifest{}, status: 201, reply: api.Plugin{}, handle: (*Server).installPlugin},
		{method: get, path: "/plugins/{name}", id: "getPlugin", summary: "Get one plugin", status: 200, reply: api.Plugin{}, handle: (*Server).getPlugin},
		{method: del, path: "/plugins/{name}", id: "removePlugin", summary: "Remove a plugin that no VM uses", status: 204, handle: (*Server).removePlugin},
		{method: get, path: "/plugins/{name}/manifest", id: "getManifest", summary: "Get a plugin's manifest", status: 200, reply: api.Manifest{}, handle: (*Server).getManifest},
		{method: post, path: "/plugins/{name}/enabled", id: "enablePlugin", summary: "Switch a plugin on or off for new VMs", body: api.PluginEnable{}, status: 200, reply: api.Plugin{}, handle: (*Server).enablePlugin},

		{method: get, path: "/blobs/{digest}", id: "getBlob", summary: "Say whether a blob is stored, and its size", status: 200, reply: api.Blob{}, handle: (*Server).getBlob},
		{method: put, path: "/blobs/{digest}", id: "putBlob", summary: "Store a blob", status: 201, reply: api.Blob{}, upload: mediaBytes, handle: (*Server).putBlob},

		{method: get, path: "/images", id: "listImages", summary: "List images, the one used last first", query: []param{selectorParam()}, status: 200, reply: []api.Image{}, handle: (*Server).listImages},
		{method: post, path: "/images/pull", id: "pullImage", summary: "Have an image fetched from its registry; progress is a JSON object a line, the last with the image or an error", body: api.ImagePull{}, status: 200, reply: api.ImageProgress{}, media: mediaNDJSON, handle: (*Server).pullImage},
		{method: post, path: "/images/load", id: "loadImage", summary: "Make images of an archive, OCI or docker save; answers as a pull does", query: loadParams(), upload: mediaBytes, status: 200, reply: api.ImageProgress{}, media: mediaNDJSON, handle: (*Server).loadImage},
		{method: post, path: "/images/prune", id: "pruneImages", summary: "Remove images that no VM uses", body: api.ImagePrune{}, bodyOpt: true, status: 200, reply: api.ImageRemoved{}, handle: (*Server).pruneImages},
		{method: get, path: "/images/{ref...}", id: "getImage", summary: "Get one image by reference or ID", status: 200, reply: api.Image{}, handle: (*Server).getImage},
		{method: del, path: "/images/{ref...}", id: "removeImage", summary: "Remove a reference, and the image with its last", query: removeImageParams(), status: 200, reply: api.ImageRemoved{}, handle: (*Server).removeImage},

		{method: get, path: "/volumes", id: "listVolumes", summary: "List volumes", query: []param{selectorParam()}, status: 200, reply: []api.Volume{}, handle: (*Server).listVolumes},
		{method: post, path: "/volumes", id: "createVolume", summary: "Make an empty volume", body: api.VolumeCreate{}, status: 201, reply: api.Volume{}, handle: (*Server).createVolume},
		{method: get, path: "/volumes/{name}", id: "getVolume", summary: "Get one volume", status: 200, reply: api.Volume{}, handle: (*Server).getVolume},
		{method: patch, path: "/volumes/{name}", id: "labelVolume", summary: "Set labels of a volume, or take them away", body: api.VolumeChange{}, status: 200, reply: api.Volume{}, handle: (*Server).labelVolume},
		{method: del, path: "/volumes/{name}", id: "removeVolume", summary: "Remove a volume that no VM mounts", status: 204, handle: (*Server).removeVolume},

		{method: get, path: "/kernels", id: "listKernels", summary: "List kernels", status: 200, reply: []api.Kernel{}, handle: (*Server).listKernels},
		{method: post, path: "/kernels", id: "importKernel", summary: "Add a kernel whose blobs were uploaded", body: api.KernelImport{}, status: 201, reply: api.Kernel{}, handle: (*Server).importKernel},
		{method: del, path: "/kernels/{name}", id: "removeKernel", summary: "Remove a kernel that no VM uses", status: 204, handle: (*Server).removeKernel},
		{method: post, path: "/kernels/{name}/default", id: "defaultKernel", summary: "Make it the kernel of VMs that name none", status: 200, reply: api.Kernel{}, handle: (*Server).defaultKernel},

		{method: get, path: "/events", id: "events", summary: "Stream the journal and then what happens, as server-sent events", query: eventParams(), status: 200, reply: api.Event{}, media: mediaSSE, handle: (*Server).allEvents},
		{method: get, path: "/events/vms", id: "vmEvents", summary: "Stream events about VMs only", query: eventParams(), status: 200, reply: api.Event{}, media: mediaSSE, handle: (*Server).vmEvents},
	}
}
