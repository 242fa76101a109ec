//! What a backend that stands before another passes on as it is.

/// Methods of [`Backend`](crate::backend::Backend), by their names, that ask the backend in a field for the same:
/// `pass_on! { inner: name device sync }`.
#[macro_export]
macro_rules! pass_on {
    ($field:ident: $($method:ident)+) => { $( $crate::pass_on!(@ $method $field); )+ };
    (@ name $field:ident) => {
        fn name(&self) -> &'static str {
            self.$field.name()
        }
    };
    (@ device $field:ident) => {
        fn device(&self) -> String {
            self.$field.device()
        }
    };
    (@ driver $field:ident) => {
        fn driver(&self) -> Option<String> {
            self.$field.driver()
        }
    };
    (@ alloc $field:ident) => {
        fn alloc(&self, len: usize, dtype: $crate::dtype::DType) -> $crate::Result<$crate::backend::Buf> {
            self.$field.alloc(len, dtype)
        }
    };
    (@ free $field:ident) => {
        fn free(&self, buf: $crate::backend::Buf) {
            self.$field.free(buf)
        }
    };
    (@ upload $field:ident) => {
        fn upload(&self, to: &mut $crate::backend::Buf, bytes: &[u8]) -> $crate::Result<()> {
            self.$field.upload(to, bytes)
        }
    };
    (@ download $field:ident) => {
        fn download(&self, from: &$crate::backend::Buf) -> $crate::Result<Vec<u8>> {
            self.$field.download(from)
        }
    };
    (@ copy $field:ident) => {
        fn copy(&self, to: &mut $crate::backend::Buf, from: &$crate::backend::Buf) -> $crate::Result<()> {
            self.$field.copy(to, from)
        }
    };
    (@ launch $field:ident) => {
        fn launch(&self, launch: &$crate::backend::Launch) -> $crate::Result<()> {
            self.$field.launch(launch)
        }
    };
    (@ sequences $field:ident) => {
        fn sequences(&self, span: &$crate::backend::Buf, cu_seqlens: &[u32], window: Option<u32>) {
            self.$field.sequences(span, cu_seqlens, window)
        }
    };
    (@ set_deterministic $field:ident) => {
        fn set_deterministic(&self, wanted: bool) {
            self.$field.set_deterministic(wanted)
        }
    };
    (@ sync $field:ident) => {
        fn sync(&self) -> $crate::Result<()> {
            self.$field.sync()
        }
    };
    (@ mark $field:ident) => {
        fn mark(&self) -> $crate::Result<$crate::backend::Mark> {
            self.$field.mark()
        }
    };
    (@ elapsed $field:ident) => {
        fn elapsed(&self, marks: Vec<$crate::backend::Mark>) -> $crate::Result<Vec<f64>> {
            self.$field.elapsed(marks)
        }
    };
    (@ memory $field:ident) => {
        fn memory(&self) -> $crate::backend::Memory {
            self.$field.memory()
        }
    };
    (@ available $field:ident) => {
        fn available(&self) -> Option<u64> {
            self.$field.available()
        }
    };
    (@ rules $field:ident) => {
        fn rules(&self) -> std::rc::Rc<dyn $crate::backend::dry::Rules> {
            self.$field.rules()
        }
    };
    (@ is_dry $field:ident) => {
        fn is_dry(&self) -> bool {
            self.$field.is_dry()
        }
    };
    (@ has_fp8 $field:ident) => {
        fn has_fp8(&self) -> bool {
            self.$field.has_fp8()
        }
    };
    (@ has_low_rank $field:ident) => {
        fn has_low_rank(&self) -> bool {
            self.$field.has_low_rank()
        }
    };
    (@ charge $field:ident) => {
        fn charge(&self, to: $crate::backend::Use) -> $crate::backend::Use {
            self.$field.charge(to)
        }
    };
    (@ host_alloc $field:ident) => {
        fn host_alloc(&self, len: usize, dtype: $crate::dtype::DType) -> $crate::Result<$crate::backend::HostBuf> {
            self.$field.host_alloc(len, dtype)
        }
    };
    (@ host_free $field:ident) => {
        fn host_free(&self, buf: $crate::backend::HostBuf) {
            self.$field.host_free(buf)
        }
    };
    (@ to_host $field:ident) => {
        fn to_host(&self, to: &mut $crate::backend::HostBuf, from: &$crate::backend::Buf) -> $crate::Result<()> {
            self.$field.to_host(to, from)
        }
    };
    (@ from_host $field:ident) => {
        fn from_host(&self, to: &mut $crate::backend::Buf, from: &$crate::backend::HostBuf) -> $crate::Result<()> {
            self.$field.from_host(to, from)
        }
    };
    (@ rows_from_host $field:ident) => {
        fn rows_from_host(&self, to: &mut $crate::backend::Buf, from: &$crate::backend::HostBuf, ids: &[u32]) -> $crate::Result<()> {
            self.$field.rows_from_host(to, from, ids)
        }
    };
    (@ host_upload $field:ident) => {
        fn host_upload(&self, to: &mut $crate::backend::HostBuf, bytes: &[u8]) -> $crate::Result<()> {
            self.$field.host_upload(to, bytes)
        }
    };
    (@ host_download $field:ident) => {
        fn host_download(&self, from: &$crate::backend::HostBuf) -> $crate::Result<Vec<u8>> {
            self.$field.host_download(from)
        }
    };
}
