// SPDX-License-Identifier: Apache-2.0

package bpf

// Shared structures; C owns them (include/maps_abi.h, include/event_abi.h).
type (
	// Ep is a pod interface of this node, the value of map ep.
	Ep = typesEp
	// AddrKey is the key of map addr.
	AddrKey = typesAddrKey
	// Addr says who an address is, the value of map addr.
	Addr = typesAddr
	// CidrKey is the key of map cidr. Plen counts the 32 bits before the address.
	CidrKey = typesCidrKey
	// Cidr is the value of map cidr.
	Cidr = typesCidr
	// Vtep is a tunnel endpoint, the value of map vtep.
	Vtep = typesVtep
	// Dev is a device that leads out of the node, the value of map dev.
	Dev = typesDev
	// Ct4Key is the key of maps ct4 and ct4_new.
	Ct4Key = typesCt4Key
	// Ct6Key is the key of maps ct6 and ct6_new.
	Ct6Key = typesCt6Key
	// Ct is what conntrack entries of both families share.
	Ct = typesCt
	// Ct4 is the value of maps ct4 and ct4_new.
	Ct4 = typesCt4
	// Ct6 is the value of maps ct6 and ct6_new.
	Ct6 = typesCt6
	// Frag4Key is the key of map frag4.
	Frag4Key = typesFrag4Key
	// Frag6Key is the key of map frag6.
	Frag6Key = typesFrag6Key
	// Frag is the value of maps frag4 and frag6.
	Frag = typesFrag
	// FrontKey is the key of map front: where a Service is reached.
	FrontKey = typesFrontKey
	// Front is the value of map front.
	Front = typesFront
	// Svc is one port of a Service, the value of map svc.
	Svc = typesSvc
	// Slots is an element of map slot: SlotsPerElem backend ids.
	Slots = typesSlots
	// Backend is the value of map backend.
	Backend = typesBackend
	// Maglev is an element of map maglev: two backend ids.
	Maglev = typesMaglev
	// AffKey is the key of map aff: a client of a Service with session affinity.
	AffKey = typesAffKey
	// Aff is the value of map aff.
	Aff = typesAff
	// SrcrangeKey is the key of map srcrange. Plen counts the 32 bits before the address.
	SrcrangeKey = typesSrcrangeKey
	// SkrevKey is the key of map skrev.
	SkrevKey = typesSkrevKey
	// Skrev is the value of map skrev: the Service behind a socket's peer.
	Skrev = typesSkrev
	// MetricsKey is the key of map metrics.
	MetricsKey = typesMetricsKey
	// Metrics is the value of map metrics, one a CPU.
	Metrics = typesMetrics
	// RunCfg is the element of map cfg: switches that change while programs run.
	RunCfg = typesRunCfg
	// EvtBudget is the element of map evt_budget, one a CPU.
	EvtBudget = typesEvtBudget
	// GcItem is an element of map gc_batch.
	GcItem = typesGcItem
	// GcExpire is the argument of program ct_expire.
	GcExpire = typesGcExpire
	// GcPurge is the argument of program ct_purge.
	GcPurge = typesGcPurge
	// TestRec is the element of map test_rec, written by programs loaded for tests.
	TestRec = typesTestRec
	// Event is the header of a record of the event ring.
	Event = typesEvent
)

// Flags of Ep.
const (
	EPNoSpoofCheck uint32 = uint32(typesEpFlagEP_NO_SPOOF_CHECK)
	EPPeerHere     uint32 = uint32(typesEpFlagEP_PEER_HERE)
)

// Kinds of Addr.
const (
	AddrNone       uint8 = uint8(typesAddrKindADDR_NONE)
	AddrLocalEP    uint8 = uint8(typesAddrKindADDR_LOCAL_EP)
	AddrRemoteEP   uint8 = uint8(typesAddrKindADDR_REMOTE_EP)
	AddrLocalNode  uint8 = uint8(typesAddrKindADDR_LOCAL_NODE)
	AddrRemoteNode uint8 = uint8(typesAddrKindADDR_REMOTE_NODE)
	AddrGateway    uint8 = uint8(typesAddrKindADDR_GATEWAY)
	AddrVIP        uint8 = uint8(typesAddrKindADDR_VIP)
	AddrCIDR       uint8 = uint8(typesAddrKindADDR_CIDR)
)

// Flags of Addr.
const (
	AddrHasSvc   uint16 = uint16(typesAddrFlagADDR_HAS_SVC)
	AddrNodePort uint16 = uint16(typesAddrFlagADDR_NODEPORT)
	AddrEcho     uint16 = uint16(typesAddrFlagADDR_ECHO)
)

// Kinds of Cidr.
const (
	CIDRIdentity uint8 = uint8(typesCidrKindCIDR_IDENTITY)
	CIDRPod      uint8 = uint8(typesCidrKindCIDR_POD)
	CIDRPodLocal uint8 = uint8(typesCidrKindCIDR_POD_LOCAL)
)

// Flags of Cidr.
const (
	CIDRNoMasq uint16 = uint16(typesCidrFlagCIDR_NO_MASQ)
)

// Flags of Dev.
const (
	DevL3 uint32 = uint32(typesDevFlagDEV_L3)
)

// Kinds of Ct.
const (
	CtPlain uint8 = uint8(typesCtKindCT_PLAIN)
	CtFwd   uint8 = uint8(typesCtKindCT_FWD)
	CtRev   uint8 = uint8(typesCtKindCT_REV)
)

// Flags of Ct.
const (
	CtOrigA     uint16 = uint16(typesCtFlagCT_ORIG_A)
	CtConfirmed uint16 = uint16(typesCtFlagCT_CONFIRMED)
	CtViaStack  uint16 = uint16(typesCtFlagCT_VIA_STACK)
	CtLoopback  uint16 = uint16(typesCtFlagCT_LOOPBACK)
	CtTunnel    uint16 = uint16(typesCtFlagCT_TUNNEL)
	CtPickedUp  uint16 = uint16(typesCtFlagCT_PICKED_UP)
	CtService   uint16 = uint16(typesCtFlagCT_SERVICE)
	CtMasq      uint16 = uint16(typesCtFlagCT_MASQ)
	CtSettled   uint16 = uint16(typesCtFlagCT_SETTLED)
	CtDSR       uint16 = uint16(typesCtFlagCT_DSR)
)

// Flags of Front; the type is in the bits from FrontTypeShift up.
const (
	FrontPrimary   uint32 = uint32(typesFrontFlagFRONT_PRIMARY)
	FrontOutside   uint32 = uint32(typesFrontFlagFRONT_OUTSIDE)
	FrontSources   uint32 = uint32(typesFrontFlagFRONT_SOURCES)
	FrontThisNode  uint32 = uint32(typesFrontFlagFRONT_THIS_NODE)
	FrontTypeShift        = 8
)

// Types of Front.
const (
	FrontClusterIP    uint32 = uint32(typesFrontTypeFRONT_CLUSTER_IP)
	FrontNodePort     uint32 = uint32(typesFrontTypeFRONT_NODE_PORT)
	FrontExternalIP   uint32 = uint32(typesFrontTypeFRONT_EXTERNAL_IP)
	FrontLoadBalancer uint32 = uint32(typesFrontTypeFRONT_LOAD_BALANCER)
	FrontHostPort     uint32 = uint32(typesFrontTypeFRONT_HOST_PORT)
)

// Flags of Svc.
const (
	SvcInternalLocal uint32 = uint32(typesSvcFlagSVC_INTERNAL_LOCAL)
	SvcExternalLocal uint32 = uint32(typesSvcFlagSVC_EXTERNAL_LOCAL)
)

// HostbackWords is the number of elements of map hostback that a protocol has; TCP comes first.
const HostbackWords = 1024

// States of Backend.
const (
	BackendGone        uint8 = uint8(typesBackendStateBACKEND_GONE)
	BackendActive      uint8 = uint8(typesBackendStateBACKEND_ACTIVE)
	BackendTerminating uint8 = uint8(typesBackendStateBACKEND_TERMINATING)
)

// Directions of MetricsKey and Event.
const (
	MetricIngress uint8 = uint8(typesMetricDirMETRIC_INGRESS)
	MetricEgress  uint8 = uint8(typesMetricDirMETRIC_EGRESS)
	MetricService uint8 = uint8(typesMetricDirMETRIC_SERVICE)
)

// Outcomes of GcItem.
const (
	GCPending uint8 = uint8(typesGcDoneGC_PENDING)
	GCDeleted uint8 = uint8(typesGcDoneGC_DELETED)
	GCChanged uint8 = uint8(typesGcDoneGC_CHANGED)
	GCMissing uint8 = uint8(typesGcDoneGC_MISSING)
)

// Reserved identities.
const (
	IdentityUnknown       uint32 = uint32(typesIdentityID_UNKNOWN)
	IdentityHost          uint32 = uint32(typesIdentityID_HOST)
	IdentityWorld         uint32 = uint32(typesIdentityID_WORLD)
	IdentityUnmanaged     uint32 = uint32(typesIdentityID_UNMANAGED)
	IdentityHealth        uint32 = uint32(typesIdentityID_HEALTH)
	IdentityInit          uint32 = uint32(typesIdentityID_INIT)
	IdentityRemoteNode    uint32 = uint32(typesIdentityID_REMOTE_NODE)
	IdentityKubeAPIServer uint32 = uint32(typesIdentityID_KUBE_APISERVER)
	IdentityIngress       uint32 = uint32(typesIdentityID_INGRESS)
	IdentityWorldV4       uint32 = uint32(typesIdentityID_WORLD_V4)
	IdentityWorldV6       uint32 = uint32(typesIdentityID_WORLD_V6)
)

// Types of Event.
const (
	EvtDrop  uint8 = uint8(typesEventTypeEVT_DROP)
	EvtTrace uint8 = uint8(typesEventTypeEVT_TRACE)
)

// Flags of Event.
const (
	EvtIPv6      uint8 = uint8(typesEventFlagEVT_IPV6)
	EvtL3Dev     uint8 = uint8(typesEventFlagEVT_L3DEV)
	EvtEncrypted uint8 = uint8(typesEventFlagEVT_ENCRYPTED)
)

// Observation points: Subtype of a trace event.
const (
	TraceToEndpoint   uint8 = uint8(typesTracePointTRACE_TO_ENDPOINT)
	TraceToProxy      uint8 = uint8(typesTracePointTRACE_TO_PROXY)
	TraceToHost       uint8 = uint8(typesTracePointTRACE_TO_HOST)
	TraceToStack      uint8 = uint8(typesTracePointTRACE_TO_STACK)
	TraceToOverlay    uint8 = uint8(typesTracePointTRACE_TO_OVERLAY)
	TraceFromEndpoint uint8 = uint8(typesTracePointTRACE_FROM_ENDPOINT)
	TraceFromProxy    uint8 = uint8(typesTracePointTRACE_FROM_PROXY)
	TraceFromHost     uint8 = uint8(typesTracePointTRACE_FROM_HOST)
	TraceFromStack    uint8 = uint8(typesTracePointTRACE_FROM_STACK)
	TraceFromOverlay  uint8 = uint8(typesTracePointTRACE_FROM_OVERLAY)
	TraceFromNetwork  uint8 = uint8(typesTracePointTRACE_FROM_NETWORK)
	TraceToNetwork    uint8 = uint8(typesTracePointTRACE_TO_NETWORK)
)

// Reason of a trace event: what conntrack said.
const (
	ReasonNew         uint8 = uint8(typesTraceReasonREASON_NEW)
	ReasonEstablished uint8 = uint8(typesTraceReasonREASON_ESTABLISHED)
	ReasonReply       uint8 = uint8(typesTraceReasonREASON_REPLY)
	ReasonRelated     uint8 = uint8(typesTraceReasonREASON_RELATED)
	ReasonReopened    uint8 = uint8(typesTraceReasonREASON_REOPENED)
	ReasonUnknown     uint8 = uint8(typesTraceReasonREASON_UNKNOWN)
)

// Source files: File of a drop event and MetricsKey.
const (
	FileNone  uint8 = uint8(typesSrcFileFILE_NONE)
	FileTC    uint8 = uint8(typesSrcFileFILE_TC)
	FileParse uint8 = uint8(typesSrcFileFILE_PARSE)
	FileFlow  uint8 = uint8(typesSrcFileFILE_FLOW)
	FileNAT   uint8 = uint8(typesSrcFileFILE_NAT)
	FileLB    uint8 = uint8(typesSrcFileFILE_LB)
	FileFwd   uint8 = uint8(typesSrcFileFILE_FWD)
	FileICMP  uint8 = uint8(typesSrcFileFILE_ICMP)
	FileFrag  uint8 = uint8(typesSrcFileFILE_FRAG)
)

// Drop reasons: Subtype of a drop event, Reason of MetricsKey. Zero there means forwarded.
const (
	DropInvalidSourceIP  uint8 = uint8(typesDropReasonDROP_INVALID_SOURCE_IP)
	DropPolicyDenied     uint8 = uint8(typesDropReasonDROP_POLICY_DENIED)
	DropInvalidPacket    uint8 = uint8(typesDropReasonDROP_INVALID_PACKET)
	DropTruncated        uint8 = uint8(typesDropReasonDROP_TRUNCATED)
	DropCtUnknownProto   uint8 = uint8(typesDropReasonDROP_CT_UNKNOWN_PROTO)
	DropUnsupportedL3    uint8 = uint8(typesDropReasonDROP_UNSUPPORTED_L3)
	DropMissedTailCall   uint8 = uint8(typesDropReasonDROP_MISSED_TAIL_CALL)
	DropWriteError       uint8 = uint8(typesDropReasonDROP_WRITE_ERROR)
	DropUnknownL4        uint8 = uint8(typesDropReasonDROP_UNKNOWN_L4)
	DropUnknownIcmp4code uint8 = uint8(typesDropReasonDROP_UNKNOWN_ICMP4CODE)
	DropUnknownIcmp4type uint8 = uint8(typesDropReasonDROP_UNKNOWN_ICMP4TYPE)
	DropUnknownIcmp6code uint8 = uint8(typesDropReasonDROP_UNKNOWN_ICMP6CODE)
	DropUnknownIcmp6type uint8 = uint8(typesDropReasonDROP_UNKNOWN_ICMP6TYPE)
	DropNoTunnelKey      uint8 = uint8(typesDropReasonDROP_NO_TUNNEL_KEY)
	DropUnknownL3target  uint8 = uint8(typesDropReasonDROP_UNKNOWN_L3TARGET)
	DropStaleIP          uint8 = uint8(typesDropReasonDROP_STALE_IP)
	DropCsumL3           uint8 = uint8(typesDropReasonDROP_CSUM_L3)
	DropCsumL4           uint8 = uint8(typesDropReasonDROP_CSUM_L4)
	DropCtInsert         uint8 = uint8(typesDropReasonDROP_CT_INSERT)
	DropInvalidExthdr    uint8 = uint8(typesDropReasonDROP_INVALID_EXTHDR)
	DropFragUnsupported  uint8 = uint8(typesDropReasonDROP_FRAG_UNSUPPORTED)
	DropNoBackend        uint8 = uint8(typesDropReasonDROP_NO_BACKEND)
	DropNoTunnelEndpoint uint8 = uint8(typesDropReasonDROP_NO_TUNNEL_ENDPOINT)
	DropUnknownCt        uint8 = uint8(typesDropReasonDROP_UNKNOWN_CT)
	DropHostUnreachable  uint8 = uint8(typesDropReasonDROP_HOST_UNREACHABLE)
	DropUnsupportedL2    uint8 = uint8(typesDropReasonDROP_UNSUPPORTED_L2)
	DropNoSNATMapping    uint8 = uint8(typesDropReasonDROP_NO_SNAT_MAPPING)
	DropSNATUnsupported  uint8 = uint8(typesDropReasonDROP_SNAT_UNSUPPORTED)
	DropNoFIB            uint8 = uint8(typesDropReasonDROP_NO_FIB)
	DropInvalidIdentity  uint8 = uint8(typesDropReasonDROP_INVALID_IDENTITY)
	DropUnknownSender    uint8 = uint8(typesDropReasonDROP_UNKNOWN_SENDER)
	DropIsClusterIP      uint8 = uint8(typesDropReasonDROP_IS_CLUSTER_IP)
	DropFragNotFound     uint8 = uint8(typesDropReasonDROP_FRAG_NOT_FOUND)
	DropForbiddenICMP6   uint8 = uint8(typesDropReasonDROP_FORBIDDEN_ICMP6)
	DropNotInSrcRange    uint8 = uint8(typesDropReasonDROP_NOT_IN_SRC_RANGE)
	DropInvalidVNI       uint8 = uint8(typesDropReasonDROP_INVALID_VNI)
	DropTTLExceeded      uint8 = uint8(typesDropReasonDROP_TTL_EXCEEDED)
	DropHostNotReady     uint8 = uint8(typesDropReasonDROP_HOST_NOT_READY)
	DropEPNotReady       uint8 = uint8(typesDropReasonDROP_EP_NOT_READY)
	DropNoEgressIP       uint8 = uint8(typesDropReasonDROP_NO_EGRESS_IP)
)

// Layout of a block reference in Svc: base in the lower SvcBlockShift bits, count above.
const (
	SvcBlockShift = 40
	SlotsPerElem  = 16
	SlotElems     = 65536
	SvcMax        = 131072
	BackendMax    = 262144
)

// EventVersion is the version of Event, EventCapMax the most bytes of a packet that follow it.
const (
	EventVersion = 1
	EventCapMax  = 128
)

// Mark bits that say what a packet has been through (include/wire_abi.h).
const (
	MarkMask = 0x0f00
	MarkDone = 0x0300
)

// SeenShift turns coarse monotonic nanoseconds into the unit of Ct.Seen, about one millisecond.
const SeenShift = 20
