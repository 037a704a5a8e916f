// SPDX-License-Identifier: Apache-2.0
//
// A CUDA runtime without a GPU: enough for ONNX Runtime's CUDA provider to open a model
// and to go through a run. "Device" memory is the host's, kernels do nothing, so that
// what comes out means nothing; but every copy to the device is written to the file
// that CUDA_STUB_LOG names, as a line "copy BYTES" and those bytes, and every launch as
// a line "launch". From when on CUDA_STUB_BROKEN is set, the device is lost as soon as it is to
// do what that names: launch, copy or wait. The functions that the provider imports and that are not here are
// added by the test; they do nothing and succeed.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HOST_TO_DEVICE = 1, DEFAULT = 4 }; // cudaMemcpyKind
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; // cudaDeviceAttr
enum { VERSION = 13000 };

static void write_log(const char *line, const void *data, size_t n)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // several runs at a time
	static int fd = -1;

	pthread_mutex_lock(&lock);
	if (fd < 0)
		fd = open(getenv("CUDA_STUB_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (write(fd, line, strlen(line)) < 0 || (n > 0 && write(fd, data, n) != (ssize_t)n))
		abort();
	pthread_mutex_unlock(&lock);
}

enum { LAUNCH_FAILURE = 719 }; // cudaErrorLaunchFailure
static int lost; // that error, once it has come up: the device is never well again

static int attempt(const char *what)
{
	const char *broken = getenv("CUDA_STUB_BROKEN");

	if (broken && strcmp(broken, what) == 0)
		lost = LAUNCH_FAILURE;
	return lost;
}

static int launch(void)
{
	if (!attempt("launch"))
		write_log("launch\n", NULL, 0);
	return lost;
}

static int copy(void *to, const void *from, size_t n, int kind)
{
	char line[64];

	if (attempt("copy"))
		return lost;
	memcpy(to, from, n);
	if (kind == HOST_TO_DEVICE || kind == DEFAULT) {
		snprintf(line, sizeof(line), "copy %zu\n", n);
		write_log(line, from, n);
	}
	return 0;
}

static int allocate(void **out, size_t n)
{
	if (posix_memalign(out, 256, n ? n : 1))
		return 2;
	memset(*out, 0, n); // what kernels leave there is a number
	return 0;
}

static int handle(void **out)
{
	static char object;

	*out = &object;
	return 0;
}

int cudaMemcpy(void *to, const void *from, size_t n, int kind) { return copy(to, from, n, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) { return copy(to, from, n, kind); }
int cudaMemset(void *to, int value, size_t n) { memset(to, value, n); return 0; }
int cudaMemsetAsync(void *to, int value, size_t n, void *stream) { memset(to, value, n); return 0; }

int cudaMalloc(void **out, size_t n) { return allocate(out, n); }
int cudaMallocHost(void **out, size_t n) { return allocate(out, n); }
int cudaHostAlloc(void **out, size_t n, unsigned flags) { return allocate(out, n); }
int cudaFree(void *p) { free(p); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = (size_t)8 << 30; return 0; }

int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
	*value = attribute == CAPABILITY_MAJOR ? 9 : attribute == CAPABILITY_MINOR ? 0 : 64;
	return 0;
}
int cudaGetDeviceProperties(char *properties, int device)
{
	memset(properties, 0, 256); // name and identity; the rest has no meaning here
	strcpy(properties, "stub");
	return 0;
}

int cudaStreamCreate(void **out) { return handle(out); }
int cudaStreamCreateWithFlags(void **out, unsigned flags) { return handle(out); }
int cudaStreamSynchronize(void *stream) { return attempt("wait"); }
int cudaDeviceSynchronize(void) { return attempt("wait"); }
int cudaEventSynchronize(void *event) { return attempt("wait"); }
int cudaGetLastError(void) { return lost; }
int cudaPeekAtLastError(void) { return lost; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreate(void **out) { return handle(out); }
int cudaEventCreateWithFlags(void **out, unsigned flags) { return handle(out); }

int cudaLaunchKernel(void) { return launch(); }
int cudaLaunchKernelExC(void) { return launch(); }
int __cudaLaunchKernel(void) { return launch(); }
void **__cudaRegisterFatBinary(void *binary) { static void *registered[1]; return registered; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n) { *n = 1; return 0; }

const char *cudaGetErrorName(int code) { return "stub"; }
const char *cudaGetErrorString(int code) { return "stub"; }
